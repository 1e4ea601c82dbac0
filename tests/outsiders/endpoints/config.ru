# A cutoff endpoint as Rack has it.
run ->(_environment) { [204, {}, []] }
