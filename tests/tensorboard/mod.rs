//! Event files, read back record by record.

use crate::protobuf::{Message, Value};
use rarunet_cuda::tensorboard::{EventWriter, crc32c};

/// The events of a file, each checksum checked.
pub fn events(bytes: &[u8]) -> Vec<&[u8]> {
    let mut rest = bytes;
    let mut events = Vec::new();
    let unmasked =
        |bytes: &[u8]| u32::from_le_bytes(bytes.try_into().unwrap()).wrapping_sub(0xa282_ead8).rotate_left(15);
    while !rest.is_empty() {
        let length = u64::from_le_bytes(rest[..8].try_into().unwrap()) as usize;
        assert_eq!(unmasked(&rest[8..12]), crc32c(&rest[..8]));
        let event = &rest[12..12 + length];
        assert_eq!(unmasked(&rest[12 + length..16 + length]), crc32c(event));
        events.push(event);
        rest = &rest[16 + length..];
    }
    events
}

#[test]
fn an_event_file_has_its_version_then_what_was_written() {
    let folder = tempfile::tempdir().unwrap();
    let mut writer = EventWriter::create(&folder.path().join("tensorboard"), 3).unwrap();
    writer.scalar(3, "loss/train", 0.25).unwrap();
    let mut png = Vec::new();
    png::Encoder::new(&mut png, 2, 5).write_header().unwrap().write_image_data(&[7; 10]).unwrap();
    writer.image(4, "validation/a", &png).unwrap();
    assert!(writer.image(4, "validation/b", b"PNG").is_err());
    let bytes = std::fs::read(writer.path()).unwrap();
    let events: Vec<Message> = events(&bytes).into_iter().map(Message).collect();
    assert_eq!(events.len(), 4);
    assert_eq!(events[0].text(3), "brain.Event:2");
    assert_eq!((events[1].ints(2), events[1].message(7).ints(1)), (vec![3], vec![1]));
    let value = events[2].message(5).message(1);
    assert_eq!((events[2].ints(2), value.text(1), value.floats(2)), (vec![3], "loss/train".into(), vec![0.25]));
    let image = events[3].message(5).message(1).message(4);
    assert_eq!((image.ints(1), image.ints(2), image.ints(3)), (vec![5], vec![2], vec![3]));
    assert_eq!(image.message(4).0, png);
    for event in &events {
        let (field, time) = event.fields()[0];
        assert!(field == 1 && matches!(time, Value::Double(seconds) if seconds > 1.7e9), "{time:?}");
    }
}

#[test]
fn two_runs_do_not_share_a_file() {
    let folder = tempfile::tempdir().unwrap();
    let writers = [1, 5].map(|step| EventWriter::create(folder.path(), step).unwrap());
    assert_ne!(writers[0].path(), writers[1].path());
    assert!(writers.iter().all(|w| w.path().file_name().unwrap().to_str().unwrap().contains(".out.tfevents.")));
    std::fs::write(folder.path().join("file"), "").unwrap();
    assert!(EventWriter::create(&folder.path().join("file"), 1).is_err());
}
