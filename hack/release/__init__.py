"""Make a release from a tag: `make release`. The steps, in this order:

    checks        the tag, the version, the changelog and the contract belong together
    distribution  wheel, source distribution, and the worker as one file that any Python runs
    plugin        archives of kubectl's plugin for each platform, and its Krew manifest
    deployment    the chart and install.yaml, which name the image of the release
    publication   push and sign image and chart (only with --push)

Everything lands in build/release, with a file of checksums.
"""
