"""The one formula of a merged weight: as a function, in place, block by block, and what it changed."""
