"""Steps that make a student smaller and let it recover."""
