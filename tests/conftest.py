"""Lets every test module import the helpers of this folder, such as ``servers``."""
