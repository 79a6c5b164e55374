"""What does a real herd ask of its storage, by each start policy?"""
