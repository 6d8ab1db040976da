"""Whether everything of a merged checkpoint arrived: layout, values, movement, the files beside, loading."""
