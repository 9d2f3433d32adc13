"""Reports: a fitted estimator as one HTML file that opens anywhere, and the labels that were corrected in it.

`write_report` writes the file. It needs jinja2: ``pip install "skdiec[report]"``. `read_labels` reads the CSV file that
"Download labels" in a report saves, for the parameter `init` of the next fit.
"""

from skdiec.report.labels import read_labels
from skdiec.report.writing import write_report

__all__ = ["read_labels", "write_report"]
