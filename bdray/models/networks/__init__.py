"""Network code (torch modules) behind the architectures of `bdray.models`, which stay light to import."""
