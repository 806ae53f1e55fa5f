// The layout of the key and value caches: no other function computes an index into them.

// Sizes of a cache [slots, kv_heads, context, width]: `width` is a head's elements, or pieces of elements.
struct CacheShape {
    kv_heads: u32,
    context: u32,
    width: u32,
}

// Index of the first element, or piece, of a key or value.
fn cache_at(shape: CacheShape, slot: u32, kv_head: u32, position: u32) -> u32 {
    return ((slot * shape.kv_heads + kv_head) * shape.context + position) * shape.width;
}
