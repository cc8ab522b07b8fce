"""What a layer still knows of its input: images recovered from embeddings, and images made for a class."""
