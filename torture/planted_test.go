package torture

import (
	"fmt"

	"github.com/brevet-pki/brevet/server"
)

func plant(name string, s server.Stores) (server.Stores, error) {
	switch name {
	case "":
		return s, nil
	default:
		return s, fmt.Errorf("no such fault: %s", name)
	}
}
