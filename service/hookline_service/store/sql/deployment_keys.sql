-- Keys of the deployment, encrypted with a master key.

-- name: offer
-- Only the first insert succeeds, so that nodes that start concurrently read the same key.
INSERT INTO deployment_keys (purpose, sealed) VALUES ($1, $2) ON CONFLICT (purpose) DO NOTHING

-- name: read
SELECT sealed FROM deployment_keys WHERE purpose = $1
