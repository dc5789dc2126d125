"""Sorites after Lewis Carroll: verified logical forms, worded anew from a seed.

`logic` decides what premises entail, by exhausting every kind of thing; `wording` puts forms into
English with a vocabulary of the project's own; `items` makes the problems.
"""

from bitsanywhere.validate.sorites.items import Item, carroll, carroll16, training_items

__all__ = ["Item", "carroll", "carroll16", "training_items"]
