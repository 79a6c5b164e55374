"""What load does a real herd put on its storage, with each start policy?"""
