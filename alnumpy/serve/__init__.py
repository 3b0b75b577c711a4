"""``alnumpy serve``: a page for searching photos, and a small HTTP interface. Needs the extra ``serve``."""
