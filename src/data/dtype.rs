//! The number types in which scans are stored, and their bytes.

/// A stored number type, named as numpy names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dtype {
    U8,
    I8,
    U16,
    I16,
    U32,
    I32,
    U64,
    I64,
    F32,
    F64,
}

/// Which byte of a number comes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ByteOrder {
    Little,
    Big,
}

impl Dtype {
    /// numpy's name, such as "int16".
    pub fn name(self) -> &'static str {
        match self {
            Dtype::U8 => "uint8",
            Dtype::I8 => "int8",
            Dtype::U16 => "uint16",
            Dtype::I16 => "int16",
            Dtype::U32 => "uint32",
            Dtype::I32 => "int32",
            Dtype::U64 => "uint64",
            Dtype::I64 => "int64",
            Dtype::F32 => "float32",
            Dtype::F64 => "float64",
        }
    }

    /// Bytes of one number.
    pub fn size(self) -> usize {
        match self {
            Dtype::U8 | Dtype::I8 => 1,
            Dtype::U16 | Dtype::I16 => 2,
            Dtype::U32 | Dtype::I32 | Dtype::F32 => 4,
            Dtype::U64 | Dtype::I64 | Dtype::F64 => 8,
        }
    }

    /// Appends the numbers that `bytes` hold to `values`; bytes that make no whole number are left.
    pub fn decode(self, bytes: &[u8], order: ByteOrder, values: &mut Vec<f64>) {
        match self {
            Dtype::U8 => values.extend(bytes.iter().map(|&byte| f64::from(byte))),
            Dtype::I8 => values.extend(bytes.iter().map(|&byte| f64::from(byte as i8))),
            Dtype::U16 => extend(bytes, order, values, |b| f64::from(u16::from_le_bytes(b))),
            Dtype::I16 => extend(bytes, order, values, |b| f64::from(i16::from_le_bytes(b))),
            Dtype::U32 => extend(bytes, order, values, |b| f64::from(u32::from_le_bytes(b))),
            Dtype::I32 => extend(bytes, order, values, |b| f64::from(i32::from_le_bytes(b))),
            Dtype::U64 => extend(bytes, order, values, |b| u64::from_le_bytes(b) as f64),
            Dtype::I64 => extend(bytes, order, values, |b| i64::from_le_bytes(b) as f64),
            Dtype::F32 => extend(bytes, order, values, |b| f64::from(f32::from_le_bytes(b))),
            Dtype::F64 => extend(bytes, order, values, f64::from_le_bytes),
        }
    }
}

/// Appends `convert` of each N little-endian bytes.
fn extend<const N: usize>(bytes: &[u8], order: ByteOrder, values: &mut Vec<f64>, convert: impl Fn([u8; N]) -> f64) {
    let (numbers, _) = bytes.as_chunks::<N>();
    match order {
        ByteOrder::Little => values.extend(numbers.iter().map(|&number| convert(number))),
        ByteOrder::Big => values.extend(numbers.iter().map(|&number| {
            let mut number = number;
            number.reverse();
            convert(number)
        })),
    }
}

/// A number type that volumes are written in.
pub trait Element: Copy {
    const DTYPE: Dtype;
    /// Appends the number's little-endian bytes.
    fn append_to(self, bytes: &mut Vec<u8>);
}

macro_rules! element {
    ($type:ty, $dtype:ident) => {
        impl Element for $type {
            const DTYPE: Dtype = Dtype::$dtype;
            fn append_to(self, bytes: &mut Vec<u8>) {
                bytes.extend_from_slice(&self.to_le_bytes());
            }
        }
    };
}
element!(u8, U8);
element!(i16, I16);
element!(i32, I32);
element!(f32, F32);
