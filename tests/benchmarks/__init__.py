"""
What publishing costs, beside the peers and beside bare Python, as ratios from one run.

Law: nothing here is imported by the library or by its other tests.
"""
