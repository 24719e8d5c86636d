"""The documentation site: mkdocs.yml, and what makes its pages of the code."""
