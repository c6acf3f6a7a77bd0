//! Who computes an expert that is not on the GPU: the GPU once it was copied, or the CPU where it lies.
