"""What lies on disks and in object stores: storages, and the files of a sweep's folder."""
