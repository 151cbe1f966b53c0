// Sums over the invocations of a workgroup of 256, in their order. Every invocation must call them.

var<workgroup> running: array<u32, 256>;

/// The sum of `value` over the invocations before `lane`.
fn sum_before(lane: u32, value: u32) -> u32 {
    // What an earlier call left may still be read.
    workgroupBarrier();
    running[lane] = value;
    workgroupBarrier();
    for (var reach = 1u; reach < 256u; reach <<= 1u) {
        var before = 0u;
        if lane >= reach {
            before = running[lane - reach];
        }
        workgroupBarrier();
        running[lane] += before;
        workgroupBarrier();
    }
    return running[lane] - value;
}

/// The sum over all invocations of the last `sum_before`.
fn sum_of_all() -> u32 {
    return running[255];
}
