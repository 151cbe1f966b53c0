// Sums over the rows of each square, of neighbouring columns eight at a time: an invocation has up to eight octets of
// them, WORKGROUP octets apart, and no barrier. Expects lib/dtype.wgsl, params.samples, params.fold and
// params.positions (rows of a sample), `weight`, the overrides WORKGROUP and SQUARED, and the kernel's functions
//   term(row, octet) -> Eight         one octet of one row
//   gradient_of(sum) -> vec4<f32>     of four sums
//   store(index, total)

/// Octets of an invocation.
override OCTETS: u32 = 4u;

struct Eight {
    lo: vec4<f32>,
    hi: vec4<f32>,
}

struct Columns {
    a: Eight,
    b: Eight,
    c: Eight,
    d: Eight,
    e: Eight,
    f: Eight,
    g: Eight,
    h: Eight,
}

fn plus(x: Eight, y: Eight) -> Eight {
    return Eight(x.lo + y.lo, x.hi + y.hi);
}

/// One row more. What lies past the last octet is that octet again, and is not stored.
fn with_row(sums: Columns, row: u32, octet: u32, last: u32) -> Columns {
    var next = sums;
    next.a = plus(next.a, term(row, octet));
    if OCTETS > 1u {
        next.b = plus(next.b, term(row, min(octet + WORKGROUP, last)));
    }
    if OCTETS > 2u {
        next.c = plus(next.c, term(row, min(octet + 2u * WORKGROUP, last)));
    }
    if OCTETS > 3u {
        next.d = plus(next.d, term(row, min(octet + 3u * WORKGROUP, last)));
    }
    if OCTETS > 4u {
        next.e = plus(next.e, term(row, min(octet + 4u * WORKGROUP, last)));
    }
    if OCTETS > 5u {
        next.f = plus(next.f, term(row, min(octet + 5u * WORKGROUP, last)));
    }
    if OCTETS > 6u {
        next.g = plus(next.g, term(row, min(octet + 6u * WORKGROUP, last)));
    }
    if OCTETS > 7u {
        next.h = plus(next.h, term(row, min(octet + 7u * WORKGROUP, last)));
    }
    return next;
}

fn squared(sum: vec4<f32>, factor: f32) -> vec4<f32> {
    let g = gradient_of(sum);
    return factor * select(g, g * g, SQUARED);
}

/// The sums of a square's rows, squared and weighted.
fn of_square(square: u32, factor: f32, octet: u32, octets: u32) -> Columns {
    var sums: Columns;
    let end = min((square + 1u) * params.fold, params.samples) * params.positions;
    for (var row = square * params.fold * params.positions; row < end; row++) {
        sums = with_row(sums, row, octet, octets - 1u);
    }
    return Columns(
        Eight(squared(sums.a.lo, factor), squared(sums.a.hi, factor)),
        Eight(squared(sums.b.lo, factor), squared(sums.b.hi, factor)),
        Eight(squared(sums.c.lo, factor), squared(sums.c.hi, factor)),
        Eight(squared(sums.d.lo, factor), squared(sums.d.hi, factor)),
        Eight(squared(sums.e.lo, factor), squared(sums.e.hi, factor)),
        Eight(squared(sums.f.lo, factor), squared(sums.f.hi, factor)),
        Eight(squared(sums.g.lo, factor), squared(sums.g.hi, factor)),
        Eight(squared(sums.h.lo, factor), squared(sums.h.hi, factor)),
    );
}

fn store_eight(index: u32, total: Eight) {
    store(index, total.lo.x);
    store(index + 1u, total.lo.y);
    store(index + 2u, total.lo.z);
    store(index + 3u, total.lo.w);
    store(index + 4u, total.hi.x);
    store(index + 5u, total.hi.y);
    store(index + 6u, total.hi.z);
    store(index + 7u, total.hi.w);
}

/// Squares `begin` to `end` of the octets from `octet`; a result's first column has index `first`.
fn columns(begin: u32, end: u32, octet: u32, octets: u32, first: u32) {
    if octet >= octets {
        return;
    }
    var total: Columns;
    for (var square = begin; square < end; square++) {
        let factor = weight[square];
        if factor != 0.0 {
            let sums = of_square(square, factor, octet, octets);
            total.a = plus(total.a, sums.a);
            total.b = plus(total.b, sums.b);
            total.c = plus(total.c, sums.c);
            total.d = plus(total.d, sums.d);
            total.e = plus(total.e, sums.e);
            total.f = plus(total.f, sums.f);
            total.g = plus(total.g, sums.g);
            total.h = plus(total.h, sums.h);
        }
    }
    store_eight(first + 8u * octet, total.a);
    if OCTETS > 1u && octet + WORKGROUP < octets {
        store_eight(first + 8u * (octet + WORKGROUP), total.b);
    }
    if OCTETS > 2u && octet + 2u * WORKGROUP < octets {
        store_eight(first + 8u * (octet + 2u * WORKGROUP), total.c);
    }
    if OCTETS > 3u && octet + 3u * WORKGROUP < octets {
        store_eight(first + 8u * (octet + 3u * WORKGROUP), total.d);
    }
    if OCTETS > 4u && octet + 4u * WORKGROUP < octets {
        store_eight(first + 8u * (octet + 4u * WORKGROUP), total.e);
    }
    if OCTETS > 5u && octet + 5u * WORKGROUP < octets {
        store_eight(first + 8u * (octet + 5u * WORKGROUP), total.f);
    }
    if OCTETS > 6u && octet + 6u * WORKGROUP < octets {
        store_eight(first + 8u * (octet + 6u * WORKGROUP), total.g);
    }
    if OCTETS > 7u && octet + 7u * WORKGROUP < octets {
        store_eight(first + 8u * (octet + 7u * WORKGROUP), total.h);
    }
}
