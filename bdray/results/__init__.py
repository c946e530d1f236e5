"""From records to tables: one row a condition, and what each is compared with."""
