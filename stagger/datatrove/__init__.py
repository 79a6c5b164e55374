"""Steps that are blocks of datatrove: recognised by their shape, and datatrove is imported only where one is used."""
