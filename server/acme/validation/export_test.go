package validation

// CheckCertificate, ParseResponse and ServerName are for the fuzz targets and tests of hostile input.
var (
	CheckCertificate = checkCertificate
	ParseResponse    = parseResponse
	ServerName       = serverName
	Interlaced       = interlaced
)
