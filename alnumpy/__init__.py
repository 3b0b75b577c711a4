"""alnumpy"""
