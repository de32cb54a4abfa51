from tasksvc.testing import service_fixture

service = service_fixture("thumbnails")
