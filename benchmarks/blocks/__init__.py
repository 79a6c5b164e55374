"""How good and how fast is block placement?"""
