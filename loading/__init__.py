"""From files to tensors: which files of a folder are images, what each means, and their pixels."""
