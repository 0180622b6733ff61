//! A seeded stream of numbers.

/// SplitMix64 (Steele, Lea, Flood 2014): the same seed gives the same load.
#[derive(Clone, Debug)]
pub(crate) struct Random(u64);

impl Random {
    /// Stream `number` of a seed; streams of one seed have nothing to do with each other.
    pub(crate) fn new(seed: u64, number: u64) -> Self {
        Self(Self(seed ^ number.wrapping_mul(0xd6e8_feb8_6659_fd93)).next())
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// In 0..1.
    pub(crate) fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// In 0..bound, each as likely as the next; 0 if the bound is 0.
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        // The high half of the product: what a remainder would prefer is spread over the whole range.
        ((u128::from(self.next()) * u128::from(bound)) >> 64) as u64
    }
}
