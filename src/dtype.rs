//! The element types that buffers may have.

/// An element type, numbered as JACCL numbers them; the C constants `MLXD_*` have these values.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Dtype {
    /// One byte, 0 or 1.
    Bool = 0,
    /// Signed, 8 bits.
    Int8 = 1,
    /// Signed, 16 bits.
    Int16 = 2,
    /// Signed, 32 bits.
    Int32 = 3,
    /// Signed, 64 bits.
    Int64 = 4,
    /// Unsigned, 8 bits.
    Uint8 = 5,
    /// Unsigned, 16 bits.
    Uint16 = 6,
    /// Unsigned, 32 bits.
    Uint32 = 7,
    /// Unsigned, 64 bits.
    Uint64 = 8,
    /// IEEE 754 binary16.
    Float16 = 9,
    /// The upper half of a binary32.
    Bfloat16 = 10,
    /// IEEE 754 binary32.
    Float32 = 11,
    /// IEEE 754 binary64.
    Float64 = 12,
    /// Two binary32: real part, imaginary part.
    Complex64 = 13,
}

impl Dtype {
    /// Every type, by number.
    pub const ALL: [Dtype; 14] = [
        Dtype::Bool,
        Dtype::Int8,
        Dtype::Int16,
        Dtype::Int32,
        Dtype::Int64,
        Dtype::Uint8,
        Dtype::Uint16,
        Dtype::Uint32,
        Dtype::Uint64,
        Dtype::Float16,
        Dtype::Bfloat16,
        Dtype::Float32,
        Dtype::Float64,
        Dtype::Complex64,
    ];

    /// The type that has this number.
    pub fn from_number(number: i32) -> Option<Dtype> {
        Dtype::ALL.get(usize::try_from(number).ok()?).copied()
    }

    /// Bytes of one element.
    pub fn size(self) -> usize {
        match self {
            Dtype::Bool | Dtype::Int8 | Dtype::Uint8 => 1,
            Dtype::Int16 | Dtype::Uint16 | Dtype::Float16 | Dtype::Bfloat16 => 2,
            Dtype::Int32 | Dtype::Uint32 | Dtype::Float32 => 4,
            Dtype::Int64 | Dtype::Uint64 | Dtype::Float64 | Dtype::Complex64 => 8,
        }
    }

    /// The name used in messages: `float32`.
    pub fn name(self) -> &'static str {
        match self {
            Dtype::Bool => "bool",
            Dtype::Int8 => "int8",
            Dtype::Int16 => "int16",
            Dtype::Int32 => "int32",
            Dtype::Int64 => "int64",
            Dtype::Uint8 => "uint8",
            Dtype::Uint16 => "uint16",
            Dtype::Uint32 => "uint32",
            Dtype::Uint64 => "uint64",
            Dtype::Float16 => "float16",
            Dtype::Bfloat16 => "bfloat16",
            Dtype::Float32 => "float32",
            Dtype::Float64 => "float64",
            Dtype::Complex64 => "complex64",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_round_trip() {
        for (number, dtype) in Dtype::ALL.into_iter().enumerate() {
            assert_eq!(Dtype::from_number(number as i32), Some(dtype));
            assert_eq!(dtype as usize, number);
        }
        for unknown in [-1, 14, i32::MAX, i32::MIN] {
            assert_eq!(Dtype::from_number(unknown), None);
        }
    }
}
