//! Protocol Buffers, read: for what the program writes.

/// A field's value.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Value<'a> {
    Int(u64),
    Float(f32),
    Double(f64),
    Bytes(&'a [u8]),
}

/// A message that is read.
#[derive(Debug, Clone, Copy)]
pub struct Message<'a>(pub &'a [u8]);

impl<'a> Message<'a> {
    /// All fields in order, with their numbers.
    pub fn fields(self) -> Vec<(u64, Value<'a>)> {
        let mut rest = self.0;
        let mut fields = Vec::new();
        while !rest.is_empty() {
            let tag = varint(&mut rest);
            let value = match tag & 7 {
                0 => Value::Int(varint(&mut rest)),
                1 => Value::Double(f64::from_le_bytes(take(&mut rest, 8).try_into().unwrap())),
                2 => {
                    let length = varint(&mut rest) as usize;
                    Value::Bytes(take(&mut rest, length))
                }
                5 => Value::Float(f32::from_le_bytes(take(&mut rest, 4).try_into().unwrap())),
                kind => panic!("a field of kind {kind}"),
            };
            fields.push((tag >> 3, value));
        }
        fields
    }

    fn all(self, field: u64) -> impl Iterator<Item = Value<'a>> {
        self.fields().into_iter().filter(move |(number, _)| *number == field).map(|(_, value)| value)
    }

    pub fn messages(self, field: u64) -> Vec<Message<'a>> {
        self.all(field).map(|value| if let Value::Bytes(bytes) = value { Message(bytes) } else { panic!() }).collect()
    }

    pub fn message(self, field: u64) -> Message<'a> {
        let messages = self.messages(field);
        assert_eq!(messages.len(), 1, "field {field} is there once");
        messages[0]
    }

    pub fn texts(self, field: u64) -> Vec<String> {
        self.messages(field).into_iter().map(|message| String::from_utf8(message.0.to_vec()).unwrap()).collect()
    }

    pub fn text(self, field: u64) -> String {
        String::from_utf8(self.message(field).0.to_vec()).unwrap()
    }

    pub fn ints(self, field: u64) -> Vec<i64> {
        self.all(field).map(|value| if let Value::Int(int) = value { int as i64 } else { panic!() }).collect()
    }

    pub fn floats(self, field: u64) -> Vec<f32> {
        self.all(field).map(|value| if let Value::Float(float) = value { float } else { panic!() }).collect()
    }
}

fn take<'a>(rest: &mut &'a [u8], count: usize) -> &'a [u8] {
    let (taken, left) = rest.split_at(count);
    *rest = left;
    taken
}

fn varint(rest: &mut &[u8]) -> u64 {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let byte = take(rest, 1)[0];
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return value;
        }
    }
    panic!("a varint without end")
}
