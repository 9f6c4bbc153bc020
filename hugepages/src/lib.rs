//! The DMA arena: hugepage memory in owned buffers.
