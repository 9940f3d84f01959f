package est

// Bindings are the values that identify a connection.
var Bindings = bindings
