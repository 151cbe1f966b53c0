//! The named buffers of a kernel, described so that a test can compare them with the shader.

use bytemuck::{Pod, cast_slice, cast_slice_mut};

use crate::memory::{Element, View};

/// How a kernel uses a buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Only read; may be bound several times in one step.
    Read,
    /// Written, perhaps read before; bound once.
    Write,
}

/// One storage binding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Binding {
    /// The name, the same in Rust and WGSL.
    pub name: &'static str,
    /// How it is used.
    pub access: Access,
}

/// A kernel's storage buffers, in binding order. Written with [`args!`](crate::args).
pub trait Args: Clone + Send + Sync + 'static {
    /// Names and access, from binding 1.
    const BINDINGS: &'static [Binding];

    /// The same buffers as the host execution sees them.
    type Slices<'a>;

    /// The views, in binding order.
    fn views(&self) -> Vec<&View>;

    /// The arguments from views in binding order; exactly as many as there are bindings.
    fn from_views(views: Vec<View>) -> Self;

    /// The host's slices from slots in binding order.
    fn slices<'a>(slots: Vec<Slot<'a>>) -> Self::Slices<'a>;
}

/// A buffer that the host execution reads.
#[derive(Clone, Copy, Debug)]
pub struct Slice<'a> {
    bytes: &'a [u8],
    element: Element,
}

/// A buffer that the host execution writes.
#[derive(Debug)]
pub struct SliceMut<'a> {
    bytes: &'a mut [u8],
    element: Element,
}

/// A slice of either access.
#[derive(Debug)]
pub enum Slot<'a> {
    /// To read.
    Read(Slice<'a>),
    /// To write.
    Write(SliceMut<'a>),
}

impl<'a> Slice<'a> {
    /// A slice over `bytes`, which start at a multiple of 16 in memory and hold whole elements.
    #[must_use]
    pub fn new(bytes: &'a [u8], element: Element) -> Self {
        Self { bytes, element }
    }

    /// What the bytes are.
    #[must_use]
    pub fn element(&self) -> Element {
        self.element
    }

    /// Number of elements.
    #[must_use]
    pub fn len(&self) -> usize {
        self.bytes.len() / self.element.bytes()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// The elements as `T`, which has their size.
    #[must_use]
    pub fn cast<T: Pod>(&self) -> &'a [T] {
        cast_slice(self.bytes)
    }

    /// Whether both are the same elements of the same memory.
    #[must_use]
    pub(crate) fn is_same(&self, other: Slice<'_>) -> bool {
        std::ptr::eq(self.bytes, other.bytes) && self.element == other.element
    }

    /// Elements `start..start + len`.
    #[must_use]
    pub fn range(&self, start: usize, len: usize) -> Self {
        let size = self.element.bytes();
        Self { bytes: &self.bytes[start * size..(start + len) * size], element: self.element }
    }
}

impl<'a> SliceMut<'a> {
    /// A slice over `bytes`, which start at a multiple of 16 in memory and hold whole elements.
    #[must_use]
    pub fn new(bytes: &'a mut [u8], element: Element) -> Self {
        Self { bytes, element }
    }

    /// What the bytes are.
    #[must_use]
    pub fn element(&self) -> Element {
        self.element
    }

    /// Number of elements.
    #[must_use]
    pub fn len(&self) -> usize {
        self.bytes.len() / self.element.bytes()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// The elements as `T`, which has their size.
    #[must_use]
    pub fn cast<T: Pod>(self) -> &'a mut [T] {
        cast_slice_mut(self.bytes)
    }

    /// The same elements, to read.
    #[must_use]
    pub fn as_slice(&self) -> Slice<'_> {
        Slice { bytes: self.bytes, element: self.element }
    }

    /// The same elements for a shorter time.
    #[must_use]
    pub fn reborrow(&mut self) -> SliceMut<'_> {
        SliceMut { bytes: self.bytes, element: self.element }
    }

    /// Consecutive pieces of `len` elements (the last one shorter), for threads to share out.
    #[must_use]
    pub fn chunks(self, len: usize) -> Vec<Self> {
        let element = self.element;
        self.bytes.chunks_mut(len * element.bytes()).map(|bytes| Self { bytes, element }).collect()
    }
}

impl<'a> Slot<'a> {
    /// The slice to read; the binding said so.
    #[must_use]
    pub fn read(self) -> Slice<'a> {
        match self {
            Self::Read(slice) => slice,
            Self::Write(_) => unreachable!("slots are made in the order and access of Args::BINDINGS"),
        }
    }

    /// The slice to write; the binding said so.
    #[must_use]
    pub fn write(self) -> SliceMut<'a> {
        match self {
            Self::Write(slice) => slice,
            Self::Read(_) => unreachable!("slots are made in the order and access of Args::BINDINGS"),
        }
    }
}

/// Declares a kernel's storage buffers: `read name,` or `write name,`, in binding order.
///
/// The first name is the struct of [`View`](crate::memory::View)s that a step is recorded with, the second
/// the struct of slices that the host execution is given. The contract test compares names and access with the shader.
#[macro_export]
macro_rules! args {
    ($(#[$meta:meta])* pub struct $name:ident / $slices:ident { $($(#[$doc:meta])* $access:ident $field:ident,)* }) => {
        $(#[$meta])*
        #[derive(Clone, Debug)]
        pub struct $name { $($(#[$doc])* pub $field: $crate::memory::View,)* }

        #[doc = concat!("[`", stringify!($name), "`] as the host execution sees them.")]
        #[derive(Debug)]
        pub struct $slices<'a> { $($(#[$doc])* pub $field: $crate::args!(@slice $access 'a),)* }

        impl $crate::kernel::Args for $name {
            const BINDINGS: &'static [$crate::kernel::Binding] = &[$(
                $crate::kernel::Binding { name: stringify!($field), access: $crate::args!(@access $access) },
            )*];

            type Slices<'a> = $slices<'a>;

            fn views(&self) -> Vec<&$crate::memory::View> {
                vec![$(&self.$field,)*]
            }

            fn from_views(views: Vec<$crate::memory::View>) -> Self {
                let mut views = views.into_iter();
                $(let $field = views.next().expect("as many views as bindings");)*
                Self { $($field,)* }
            }

            fn slices<'a>(slots: Vec<$crate::kernel::Slot<'a>>) -> $slices<'a> {
                let mut slots = slots.into_iter();
                $(let $field = slots.next().expect("as many slots as bindings").$access();)*
                $slices { $($field,)* }
            }
        }
    };
    (@slice read $lifetime:lifetime) => { $crate::kernel::Slice<$lifetime> };
    (@slice write $lifetime:lifetime) => { $crate::kernel::SliceMut<$lifetime> };
    (@access read) => { $crate::kernel::Access::Read };
    (@access write) => { $crate::kernel::Access::Write };
}
