package cli

// Variables lists the environment variables of commands of brevet, other than those of configuration keys. brevet serve
// refuses any other variable that begins with BREVET_.
var Variables = []string{"BREVET_SERVER"}
