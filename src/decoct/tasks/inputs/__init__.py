"""What models read: images, texts, words, tables; one kind a file."""
