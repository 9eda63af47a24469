"""Models in other people's layouts: Hugging Face's, and the folder that is registered."""
