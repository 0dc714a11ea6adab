"""The Hugging Face Hub: uploading, the model card, and what its refusals mean."""
