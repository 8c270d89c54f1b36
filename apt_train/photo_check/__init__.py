"""What is wrong with a set of pictures, said before they are trained on."""
