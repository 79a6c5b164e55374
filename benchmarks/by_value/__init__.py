"""What do many files at once cost, where each value of the metadata has its own?"""
