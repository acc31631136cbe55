"""What models answer: classes, numbers, tags, boxes; one kind a file."""
