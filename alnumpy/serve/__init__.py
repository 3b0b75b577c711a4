"""``alnumpy serve``: a page to search one's photos, and a small HTTP interface. Needs the extra ``serve``."""
