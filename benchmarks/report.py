def build(path): return ""
