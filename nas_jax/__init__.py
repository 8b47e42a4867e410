"""Architecture search of recurrent cells, and what its controller knows."""
