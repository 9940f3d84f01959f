package pki

// Door is a way on which a client can renew its certificate.
type Door string

// The doors. DoorSelf is for the certificates of the server itself, which renews them in its own process. No profile
// names it.
const (
	DoorGRPC Door = "grpc"
	DoorEST  Door = "est" // RFC 7030
	DoorSelf Door = "self"
)

// Doors returns the doors that a profile can name.
func Doors() []Door { return []Door{DoorGRPC, DoorEST} }
