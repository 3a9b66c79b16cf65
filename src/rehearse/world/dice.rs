//! A small generator of pseudo-random numbers (SplitMix64): the same seed gives the same world in every release, which
//! the generators of a library do not promise.

/// See the module.
#[derive(Clone, Debug)]
pub(in crate::rehearse) struct Dice(u64);

impl Dice {
    pub(in crate::rehearse) fn new(seed: u64) -> Dice {
        Dice(seed)
    }

    pub(in crate::rehearse) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    /// From 0 up to, not including, 1.
    pub(in crate::rehearse) fn share(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }

    pub(in crate::rehearse) fn shuffle<T>(&mut self, list: &mut [T]) {
        for last in (1..list.len()).rev() {
            list.swap(last, (self.next() % (last as u64 + 1)) as usize);
        }
    }
}
