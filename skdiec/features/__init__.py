"""Features: matrices of pooled activations of a backbone, for chosen layers, timesteps and poolings."""

from skdiec.features.batch_sizes import suited_batch_size
from skdiec.features.draws import Draw, Motion, small_motions
from skdiec.features.extractor import FeatureExtractor
from skdiec.features.one_cell import CellFeatures, map_features

__all__ = ["CellFeatures", "Draw", "FeatureExtractor", "Motion", "map_features", "small_motions", "suited_batch_size"]
