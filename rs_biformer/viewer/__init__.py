"""A local page that shows a map with its scene, label, scores and differences."""
