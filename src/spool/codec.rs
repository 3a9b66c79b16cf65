//! The bytes of the spool: big-endian integers and length-prefixed strings, written by hand so that the format is what
//! this file says and nothing else.
//!
//! Decoders take bytes that may be anything. They never panic, and they never allocate more than they were given:
//! a count is only believed as far as the bytes behind it reach.

use std::sync::Arc;

/// The bytes do not spell a value of the type that was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("malformed {0}")]
pub(super) struct Malformed(pub(super) &'static str);

impl From<Malformed> for std::io::Error {
    fn from(malformed: Malformed) -> Self {
        std::io::Error::new(std::io::ErrorKind::InvalidData, malformed)
    }
}

/// A value with one spelling in bytes.
pub(super) trait Codec: Sized {
    /// Appends the value.
    fn put(&self, out: &mut Vec<u8>);

    /// Takes a value from the front of `input`.
    fn take(input: &mut Input<'_>) -> Result<Self, Malformed>;
}

/// The value alone in a vector of its own.
pub(super) fn bytes_of<T: Codec>(value: &T) -> Vec<u8> {
    let mut out = Vec::with_capacity(64);
    value.put(&mut out);
    out
}

/// Reads a value that fills `bytes` to the end.
pub(super) fn whole<T: Codec>(bytes: &[u8]) -> Result<T, Malformed> {
    let mut input = Input(bytes);
    let value = T::take(&mut input)?;
    if input.0.is_empty() { Ok(value) } else { Err(Malformed("end")) }
}

/// Bytes that are still to be read.
#[derive(Clone, Copy, Debug)]
pub(super) struct Input<'a>(pub(super) &'a [u8]);

impl<'a> Input<'a> {
    /// The next `count` bytes.
    pub(super) fn bytes(&mut self, count: usize) -> Result<&'a [u8], Malformed> {
        let (head, rest) = self.0.split_at_checked(count).ok_or(Malformed("length"))?;
        self.0 = rest;
        Ok(head)
    }

    /// The next `N` bytes as an array.
    pub(super) fn array<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        let (head, rest) = self.0.split_first_chunk::<N>().ok_or(Malformed("length"))?;
        self.0 = rest;
        Ok(*head)
    }

    /// Bytes behind a 32-bit length.
    pub(super) fn prefixed(&mut self) -> Result<&'a [u8], Malformed> {
        let length = u32::take(self)?;
        self.bytes(usize::try_from(length).map_err(|_| Malformed("length"))?)
    }

    /// A string behind a 32-bit length.
    pub(super) fn text(&mut self) -> Result<&'a str, Malformed> {
        std::str::from_utf8(self.prefixed()?).map_err(|_| Malformed("UTF-8"))
    }
}

/// Appends bytes behind a 32-bit length. Nothing that the spool keeps is longer than 4 GiB: ingress caps sizes far below.
pub(super) fn put_prefixed(out: &mut Vec<u8>, bytes: &[u8]) {
    u32::try_from(bytes.len()).expect("sizes are capped at ingress").put(out);
    out.extend_from_slice(bytes);
}

macro_rules! integers {
    ($($type:ty),*) => {$(
        impl Codec for $type {
            fn put(&self, out: &mut Vec<u8>) {
                out.extend_from_slice(&self.to_be_bytes());
            }

            fn take(input: &mut Input<'_>) -> Result<Self, Malformed> {
                input.array().map(<$type>::from_be_bytes)
            }
        }
    )*};
}

integers!(u8, u16, u32, u64, i64);

impl Codec for bool {
    fn put(&self, out: &mut Vec<u8>) {
        out.push(u8::from(*self));
    }

    fn take(input: &mut Input<'_>) -> Result<Self, Malformed> {
        match u8::take(input)? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(Malformed("flag")),
        }
    }
}

impl Codec for Box<str> {
    fn put(&self, out: &mut Vec<u8>) {
        put_prefixed(out, self.as_bytes());
    }

    fn take(input: &mut Input<'_>) -> Result<Self, Malformed> {
        input.text().map(Into::into)
    }
}

impl Codec for Arc<str> {
    fn put(&self, out: &mut Vec<u8>) {
        put_prefixed(out, self.as_bytes());
    }

    fn take(input: &mut Input<'_>) -> Result<Self, Malformed> {
        input.text().map(Into::into)
    }
}

impl<T: Codec> Codec for Arc<T> {
    fn put(&self, out: &mut Vec<u8>) {
        T::put(self, out);
    }

    fn take(input: &mut Input<'_>) -> Result<Self, Malformed> {
        T::take(input).map(Arc::new)
    }
}

impl<T: Codec> Codec for Option<T> {
    fn put(&self, out: &mut Vec<u8>) {
        self.is_some().put(out);
        if let Some(value) = self {
            value.put(out);
        }
    }

    fn take(input: &mut Input<'_>) -> Result<Self, Malformed> {
        if bool::take(input)? { T::take(input).map(Some) } else { Ok(None) }
    }
}

impl<T: Codec> Codec for Vec<T> {
    fn put(&self, out: &mut Vec<u8>) {
        put_list(out, self);
    }

    fn take(input: &mut Input<'_>) -> Result<Self, Malformed> {
        let count = u32::take(input)?;
        // Every element takes a byte at least, so a lying count cannot ask for more than there is.
        let room = usize::try_from(count).map_err(|_| Malformed("count"))?.min(input.0.len());
        let mut list = Vec::with_capacity(room.min(4096));
        for _ in 0..count {
            list.push(T::take(input)?);
        }
        Ok(list)
    }
}

/// Appends a list as [`Vec`] does.
pub(super) fn put_list<T: Codec>(out: &mut Vec<u8>, list: &[T]) {
    u32::try_from(list.len()).expect("lists are capped at ingress").put(out);
    list.iter().for_each(|value| value.put(out));
}

impl<A: Codec, B: Codec> Codec for (A, B) {
    fn put(&self, out: &mut Vec<u8>) {
        self.0.put(out);
        self.1.put(out);
    }

    fn take(input: &mut Input<'_>) -> Result<Self, Malformed> {
        Ok((A::take(input)?, B::take(input)?))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn what_is_written_reads_back(
            list in prop::collection::vec((any::<u64>(), prop::option::of(any::<u16>())), 0..20),
            text in ".*",
            flag: bool,
        ) {
            prop_assert_eq!(whole(&bytes_of(&list)), Ok(list));
            let text: Box<str> = text.into();
            prop_assert_eq!(whole(&bytes_of(&(text.clone(), flag))), Ok((text, flag)));
        }

        #[test]
        fn hostile_bytes_are_refused_without_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = whole::<Vec<(u64, Option<Box<str>>)>>(&bytes);
            let _ = whole::<(Arc<str>, bool)>(&bytes);
        }
    }

    #[test]
    fn a_lying_count_allocates_nothing() {
        let mut bytes = Vec::new();
        u32::MAX.put(&mut bytes);
        assert_eq!(whole::<Vec<u64>>(&bytes), Err(Malformed("length")));
    }
}
