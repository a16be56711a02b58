"""The one legend of shape letters for the whole repository.

    B  batch rows           T  tokens in a row        D  model width (hidden size)
    F  feed-forward width   V  vocabulary             L  layers
    Hq query heads          Hk key/value heads        E  attention head width
    H  Mamba heads          P  Mamba head width       G  B/C groups
    N  SSM state            W  convolution taps       Q  chunk length
    C  chunks               S  sequences (rows of a decode state; documents of a packed row)

Layout is (B, T, H, P). Packed batches have B = 1 and carry `cu_seqlens`: int32 of shape (S + 1,),
starting at 0, never decreasing, ending at T; document s is tokens cu_seqlens[s]:cu_seqlens[s + 1].
"""
