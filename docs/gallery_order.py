"""The order of the gallery's lessons."""

LESSONS = (
    "quickstart",
    "photos",
    "search",
    "evolution",
    "kmeans",
    "pipeline",
    "grid_search",
    "early_stop",
    "own_backbone",
    "large_data",
    "save_load",
)


class Key:
    """Sorts lessons as they are listed above."""

    def __init__(self, folder: str) -> None:
        self.folder = folder

    def __call__(self, name: str) -> int:
        """Return the place of a lesson."""
        return LESSONS.index(name.removeprefix("plot_").removesuffix(".py"))
