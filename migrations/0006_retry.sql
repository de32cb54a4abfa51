-- What: a task that was made of a final one, linked both ways.
-- Why:  final is final: to try once more is another task.
-- Safe while running? Yes: columns without a default.

ALTER TABLE task ADD COLUMN retry_of uuid, ADD COLUMN retried_as uuid;
