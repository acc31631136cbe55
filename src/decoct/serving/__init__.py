"""Asking a file: what ships beside a model, so that photos, sentences and rows are answered without decoct."""
